import pytest

from mdlm_jax.serving.gateway import regions

URL = "http://localhost:8000"
ONE = f'[[region]]\nurl = "{URL}"\n'


def read(tmp_path, text):
    path = tmp_path / "regions.toml"
    path.write_text(text)
    return regions.read(str(path))


def test_regions_keep_their_order_and_take_the_common_values(tmp_path):
    (tmp_path / "key").write_text("sk-1\n")
    found = read(
        tmp_path,
        f"""
        [gateway]
        deadline_s = 30
        tries = 3
        [every_region]
        connect_s = 1
        whole_s = 20.5
        [[region]]
        name = "eu"
        url = "https://eu.example.com/mdlm/"
        key_file = "{tmp_path}/key"
        [[region]]
        url = "http://10.0.0.2:8000"
        connect_s = 0.5
        """,
    )
    eu, other = found.regions
    assert (eu.name, eu.url, eu.connect_s) == ("eu", "https://eu.example.com/mdlm", 1)
    assert (other.name, other.connect_s, other.whole_s) == ("10.0.0.2:8000", 0.5, 20.5)
    assert found.limits == regions.Limits(deadline_s=30, tries=3)
    assert regions.read_key(eu) == "sk-1" and regions.read_key(other) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "is no TOML"),
        ("", "no region: begin each with"),
        ("[region]\nurl = 'http://a'", "no region: begin each with"),
        ("[[region]]\nname = 'a'", "region 1 has no url"),
        ("[[region]]\nurl = 'localhost:8000'", "is no address such as http://localhost:8000"),
        ("[[region]]\nurl = 'ftp://a'", "is no address"),
        ("[[region]]\nurl = 'http://a:99999'", "region 1: url = http://a:99999"),
        ("[[region]]\nurl = 'http://a/v1/'", "ends in /v1, which the gateway adds"),
        ("[[region]]\nurl = 'http://me:pw@a'", "url holds a password: give a key_file"),
        (ONE + "conect_s = 1", "unknown key conect_s (do you mean connect_s?): region 1 has"),
        (ONE + "connect_s = '1'", "connect_s = 1 must be a number from 0.001"),
        (ONE + "connect_s = true", "connect_s = True must be a number"),
        (ONE + "connect_s = -1", "connect_s = -1 must be a number from 0.001"),
        (ONE + "connect_s = nan", "connect_s = nan must be a number"),
        (ONE + "health_failures = 1.5", "health_failures = 1.5 must be a whole number from 1"),
        (ONE + "health_path = 'x'", "health_path = x must begin with /"),
        (ONE + "name = 3", "name = 3 must be a text"),
        (ONE + "name = 'a b'", "name = 'a b' must be of letters"),
        (ONE + "[gateway]\ntrys = 1", "unknown key trys (do you mean tries?): [gateway] has"),
        (ONE + "[gateway]\ntries = 0", "[gateway]: tries = 0 must be a whole number from 1"),
        (ONE + "[every_region]\nname = 'a'", "[every_region] has name"),
        (ONE + "[regions]\n", "unknown key regions (do you mean region?)"),
        (ONE + ONE, "two regions have the name localhost:8000"),
        (ONE + "[[region]]\nurl = 'http://b'\nfirst_bite_s = 1", "region 2 has"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, said):
    with pytest.raises(ValueError) as told:
        read(tmp_path, text)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert "regions.toml" in str(told.value)


def test_a_key_file_is_read_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path, ONE + f"key_file = '{tmp_path}/none'")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="holds no key"):
        read(tmp_path, ONE + f"key_file = '{tmp_path}/empty'")
