import pytest

from mdlm_jax.networks import bert


def test_defaults_are_bert_base():
    config = bert.Config()
    assert (config.layers, config.width, config.heads, config.mlp_width) == (12, 768, 12, 3072)
    assert config.head_dim == 64
    assert config.padded_vocab == config.vocab_size == 30522


@pytest.mark.parametrize("multiple, rows", [(1, 13), (8, 16), (13, 13), (128, 128)])
def test_padded_vocab(multiple, rows):
    assert bert.Config(vocab_size=13, mask_id=1, vocab_multiple=multiple).padded_vocab == rows


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm_position": "both"}, r"norm_position='both': must be one of \['post', 'pre'\]"),
        ({"norm": "batchnorm"}, "norm='batchnorm'"),
        ({"positions": "alibi"}, "positions='alibi'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"attention": "sparse"}, "attention='sparse'"),
        (
            {"attention_backend": "flash"},
            r"attention_backend='flash': must be one of \['auto', 'xla', ",
        ),
        ({"remat": "some"}, "remat='some'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"token_types": 3}, "token_types=3"),
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1"),
        ({"vocab_multiple": 0}, "vocab_multiple=0"),
        ({"layers": 0}, "layers=0"),
        ({"mask_id": 30522}, r"mask_id=30522: must be in \[0, vocab_size=30522\)"),
        ({"mask_id": -1}, "mask_id=-1"),
        ({"heads": 7}, "heads=7: must be a divisor of width=768"),
        ({"width": 12, "heads": 4, "positions": "rope"}, "width/heads=3 is odd"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"classes": -1}, "classes=-1"),
        ({"class_dropout": 0.1}, "class_dropout=0.1: must be 0 where classes=0"),
        ({"classes": 2, "class_dropout": 1.5}, "class_dropout=1.5"),
        ({"attention": "local"}, "window=0: must be at least 1 where attention='local'"),
        ({"window": 4}, "window=4: must be 0 where attention='full'"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: must be positive"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        bert.Config(**fields)
    assert "\n" not in str(error.value)
