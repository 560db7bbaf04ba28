"""The replay on a terminal, and what is printed where there is none."""

import io

from pages import FILLED, FREE, SAMPLES
from rich.cells import cell_len
from rich.console import Console

from mdlm_jax.pages.watch import frame, watch


def printed(samples, **console):
    console = Console(file=io.StringIO(), width=60, **console)
    watch(samples, console, seconds=0.2)
    return console.file.getvalue()


def styles(text):
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_without_a_terminal_the_final_texts_alone_are_printed():
    assert printed(SAMPLES, force_terminal=False) == f"{FREE['text']}\n\n{FILLED['text']}\n"


def test_markup_and_long_lines_are_left_as_they_are():
    text = "[bold]no[/bold] :smile: " + "word " * 50 + "end"
    assert printed([{**FREE, "text": text}], force_terminal=False) == text + "\n"


def test_masks_are_as_wide_as_their_tokens_and_the_text_stands_still():
    wide = {**FREE, "tokens": [[" 河川", 0, -1.0], [" hill", 1, -1.0]]}
    assert frame(wide, 0).plain == " ░░░░ ░░░░"
    assert frame(wide, 1).plain == " 河川 ░░░░"
    for step in range(5):
        assert cell_len(frame(FILLED, step).plain) == cell_len(FILLED["text"])


def test_the_just_written_is_bright_the_older_plain_the_given_dim():
    after = styles(frame(FILLED, 3))
    assert after["the <i>city"] == after["."] == "dim"
    assert "bold" in after[" </script><b>york"]
    assert frame(FILLED, 3).plain.startswith("the <i>city of ░░░ </script>")
    older = styles(frame(FILLED, 6))
    assert "bold" in older[" new"] and "bold" not in older.get(" </script><b>york", "")


def test_the_last_frame_is_the_text_with_nothing_bright():
    for sample in SAMPLES:
        last = frame(sample, sample["steps"])
        assert last.plain == sample["text"]
        assert not any("bold" in style for style in styles(last).values())


def test_a_terminal_sees_the_canvas_fill_in_and_keeps_the_text():
    shown = printed([FREE], force_terminal=True, color_system=None)
    for step in range(4):
        assert frame(FREE, step).plain.strip() in shown and f"step {step} of 4" in shown
    assert shown.rindex("a river & a hill") > shown.rindex("step 3 of 4")
    assert "░" not in shown[shown.rindex("a river") :]


def test_more_steps_than_frames_are_strode_over():
    shown = printed([{**FREE, "steps": 1000}], force_terminal=True, color_system=None)
    assert 2 <= len(set(shown.split("of 1000"))) <= 6


def test_texts_longer_than_the_screen_are_left_whole():
    tokens = [[f"word{i}\n", i % 4, -1.0] for i in range(200)]
    sample = {**FREE, "tokens": tokens, "text": "".join(piece for piece, _, _ in tokens)}
    shown = printed([sample], force_terminal=True, color_system=None, height=10)
    tail = shown[shown.rindex("word0\n") :]
    assert tail.split() == [f"word{i}" for i in range(200)]
