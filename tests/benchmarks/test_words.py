import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import sample_picture, words


def test_words_are_runs_of_letters_in_lower_case():
    text = "It's the river's 3rd bank, naïve Straße; [UNK] 42 a-b."
    found = ["it's", "the", "river's", "rd", "bank", "naïve", "straße", "unk", "a", "b"]
    assert list(words.words(text)) == found


def test_the_share_counts_every_word_as_often_as_it_stands():
    assert words.share(["The cat", "the the dgo!"], {"the", "cat"}) == (0.8, 5)
    with pytest.raises(ValueError, match="no word"):
        words.share(["12 ...", ""], {"the"})


TOKENS = [["Soup", -1, 0.0], [" of", 3, -0.1], [" a<b", 0, -2.0], ["\n", 1, -0.5], ["end", 2, -0.1]]


def test_a_picture_holds_the_whole_text_and_colours_it_by_step(tmp_path):
    source, target = tmp_path / "samples.json", tmp_path / "picture.svg"
    source.write_text(json.dumps([{"steps": 4, "tokens": TOKENS}]))
    sample_picture.main([str(source), "0", f"--output={target}"])
    texts = ElementTree.parse(target).findall(".//{http://www.w3.org/2000/svg}text")
    assert ["".join(text.itertext()) for text in texts] == ["Soup of a<b", "end"]
    fills = {piece.text: piece.get("fill") for text in texts for piece in text}
    assert fills["Soup"] == sample_picture.GIVEN
    assert (fills[" a<b"], fills[" of"]) == ("#9ec5e8", "#0b3c6f")
    with pytest.raises(SystemExit):
        sample_picture.main([str(source), "1", f"--output={target}"])


def test_long_lines_break_between_words():
    tokens = [("word", 0, 0.0), *[(" word", 0, 0.0)] * 30]
    lines = ["".join(text for text, _ in line) for line in sample_picture.lines(tokens, 20)]
    assert max(map(len, lines)) <= 20 and " ".join(lines) == " ".join(["word"] * 31)
