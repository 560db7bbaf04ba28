"""What a run is: its config, its family, its program, its folder, what it started from.

| module | what it holds |
|---|---|
| `experiment` | a whole config, checked |
| `config_json` | the config.json of a run, as this version reads it |
| `config_of_run` | the config file that `--config=RUN/config.json` stands for |
| `following` | keys that follow others, where one thing can be meant |
| `families` | what can be trained: one file each |
| `following` | keys that follow where two contradict each other and one thing can be meant |
| `program` | from an experiment and a mesh to the compiled training step |
| `planning` | from a config and a folder to all that a training needs, checked and open |
| `hooks` | what is measured and shown now and then while a run trains |
| `sampler` | the compiled sampler of a network |
| `shaping` | temperature, nuclei and what else shapes a denoiser before it is drawn from |
| `workdir` | the folder of a run: made, claimed, and its weights read |
| `models` | a model to be measured: of a run, an export or Hugging Face |
| `start_config` | what a run starts from, and what that decides of its model |
| `starting` | the weights that a run starts from, read |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
