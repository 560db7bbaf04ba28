"""What a program costs, without the chips: ahead-of-time compiling, topologies, HLO, FLOPs."""
