"""Bad input is one line that names the culprit and what is accepted; nothing is lost or begun."""

import concurrent.futures
import contextlib
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import TINY, run, write_text
from tokenizers import Tokenizer, models

pytestmark = pytest.mark.slow  # more than a hundred commands, minutes in all

ONLY_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder of everything that can be wrong, beside one run that is right."""
    folder = tmp_path_factory.mktemp("bad_input")
    text = write_text(folder / "text.txt")
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}
    good = folder / "run"
    run("train", *TINY, "--workdir={run}", text=text, run=good, env=env)
    run("export", "--workdir={run}", f"--output={folder}/exported", run=good, env=env)

    def copy(name, damage):
        shutil.copytree(good, folder / name)
        damage(folder / name)

    def set_format(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "format": 99}))

    def truncate(path):
        for file in (path / "checkpoints").rglob("manifest.ocdbt"):
            file.write_bytes(file.read_bytes()[:40])

    copy("newer", set_format)
    copy("torn", lambda path: (path / "config.json").write_text('{"format": 1, "mod'))
    copy("damaged", truncate)
    copy("unsaved", lambda path: shutil.rmtree(path / "checkpoints"))
    copy("swapped", lambda path: _bert_like(path / "tokenizer.json", ["[MASK]", "a", "b"]))
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("precious")

    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 4)
    (folder / "torn.txt.gz").write_bytes(gzip.compress(text.read_bytes())[:-200])
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": "torn\n')
    (folder / "fieldless.jsonl").write_text('{"body": "no field"}\n')
    (folder / "talks.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    (folder / "notes.pdf").write_text("text in a file of another kind")
    (folder / "short.txt").write_text("a few words only.")
    _bert_like(folder / "maskless.json", ["a", "b"])
    (folder / "prompts.jsonl").write_text('{"prompt": "a [MASK]"}\n{"text": "no prompt"}\n')
    (folder / "empty.jsonl").write_text("\n")
    (folder / "samples.jsonl").write_text('{"prompt": "another", "strategy": "exact_count"}\n')
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "wide.py").write_bytes("def get_config():\n    return 3\n".encode("utf-16"))
    (folder / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "nothing.py").write_text("config = 3\n")
    (folder / "number.py").write_text("def get_config():\n    return 3\n")
    bert = Path(__file__).parent / "interop" / "golden" / "bert"
    return {"folder": folder, "text": text, "run": good, "bert": bert, "env": env}


def _bert_like(path, words):
    vocabulary = {word: i for i, word in enumerate([*ONLY_SPECIAL, *words])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).save(str(path))


NEW = (*TINY, "--workdir={folder}/new")
OLD = (*TINY, "--workdir={run}")
BY_FILE = tuple(a for a in TINY if a != "--config.data.documents=paragraph")
TEXT = (*BY_FILE, "--workdir={folder}/new", "--config.data.files={folder}")  # and the file's name
TALKS = ("--config.data.messages_field=messages", "--config.data.rows=padded")
WRITE = "--workdir={run}"
BLOCKS = (
    "--config.objective.name=block", "--config.model.attention=full", "--config.model.window=0",
)  # fmt: skip

CASES = {
    # the command line and the config file
    "no workdir": ("train", ["--config=quickstart"], "--workdir is required"),
    "no config": ("train", ["--workdir={folder}/new"], "--config is required"),
    "config name": ("train", ["--config=quickstat", "--workdir=x"], "shipped configs.*quickstart"),
    "config syntax": ("train", ["--config={folder}/syntax.py", "--workdir=x"], "syntax.py, line 1"),
    "config of no text": (
        "train", ["--config", "{folder}/wide.py", "--workdir=x"], "wide.py is no UTF-8 text: .*nul",
    ),
    "config at home": ("train", ["--config=~/gone.py", "--workdir=x"], "--config=/.*/gone.py: no"),
    "config raises": (
        "train", ["--config={folder}/raises.py", "--workdir=x"], "raises.py, line 2: ZeroDivision",
    ),
    "config empty": ("train", ["--config={folder}/nothing.py", "--workdir=x"], "no get_config"),
    "config type": ("train", ["--config={folder}/number.py", "--workdir=x"], "default_config"),
    "key": ("train", [*NEW, "--config.model.widht=3"], r"mean model.width\?\): model has"),
    "section": ("train", [*NEW, "--config.modell.width=3"], "unknown config key.*modell"),
    "not a number": ("train", [*NEW, "--config.training.steps=ten"], "training.steps=ten"),
    "extra word": ("evaluate", [WRITE, "extra"], "unexpected argument 'extra'"),
    "split": ("evaluate", [WRITE, "--split=dev"], "split=dev.*train.*validation.*test"),
    "draws": ("evaluate", [WRITE, "--draws=1"], "draws=1.*2"),
    "show": ("prepare", ["--config=quickstart", "--show=-1"], "show=-1"),
    "beam options": (
        "prepare", ["--config=quickstart", "--beam_options=region=r"], "options needs --runner",
    ),
    "no runs": ("report", [], "give the folder of a run"),
    # what is measured
    "no model": ("evaluate", [], "--workdir is required .or --checkpoint"),
    "two models": ("evaluate", [WRITE, "--checkpoint=x", "--text=y"], "exclude each other"),
    "nowhere to write": ("evaluate", ["--checkpoint={run}", "--text={text}"], "needs --output"),
    "split and text": ("evaluate", [WRITE, "--split=test", "--text={text}"], "exclude each other"),
    "output of a split": ("evaluate", [WRITE, "--output=x"], "--output needs --text"),
    "missing text": ("evaluate", [WRITE, "--text={folder}/gone.txt"], "--text: .*gone.txt' match"),
    "text of a name": ("evaluate", [WRITE, "--text={text}", "--name=test"], "no split, not 'test'"),
    "long text": ("evaluate", [WRITE, "--text={text}", "--length=17"], "--length .* from 2 to 16"),
    "weights of none": (
        "evaluate",
        ["--checkpoint={folder}/other", "--weights=params", "--text={text}", "--output=x"],
        "other is no run: it has one kind of weights",
    ),
    "likelihood mesh": ("evaluate", [WRITE, "--mesh=fdsp=2"], "mesh 'fdsp=2': it must be sizes of"),
    "no pairs": ("evaluate", [WRITE, "--answers"], "run was not trained on pairs of a prompt"),
    "answers scorer": ("evaluate", [WRITE, "--answers", "--scorer=trigram"], "--scorer is for --f"),
    "frontier mesh": ("evaluate", [WRITE, "--frontier", "--mesh=data=3"], "data=3.*1 devices"),
    "not causal": (
        "train",
        [*NEW, "--config.objective.name=autoregressive", "--config.model.attention=local"],
        "model.attention 'local' sees",
    ),
    "no evaluation": ("report", ["{run}/config.json"], "config.json holds no likelihood"),
    "runs and files": ("report", ["{run}", "{run}/config.json"], "not both"),
    "page of a run": ("report", ["{run}", "--output=x.html"], "--output is for a comparison"),
    "no picture": ("report", ["{run}/config.json", "--output=x.html"], "is .png: name it so"),
    "harness of nothing": ("harness", ["--tasks=piqa"], "give --workdir of a run, or --checkpoint"),
    "harness of no run": ("harness", ["--workdir={folder}/other", "--tasks=piqa"], "other is not"),
    # values
    "value": ("train", [*NEW, "--config.model.norm=layernrom"], "layernrom.*layernorm.*rmsnorm"),
    "heads": ("train", [*NEW, "--config.model.heads=3"], "model.heads=3.*divisor"),
    "patience": ("train", [*NEW, "--config.training.patience=-1"], "patience must be at least 0"),
    "keep": ("train", [*NEW, "--config.training.keep_every=-1"], "keep_every must be at least 0"),
    "steps": ("train", [*NEW, "--config.training.steps=0"], "training.steps must be at least 1"),
    "rate": ("train", [*NEW, "--config.optimizer.learning_rate=-1"], "learning_rate.*-1"),
    "microbatches": ("train", [*NEW, "--config.training.accumulation=3"], "multiple of .* 3"),
    "profile": ("train", [*NEW, "--config.profile_steps=13:10"], "10:13, not '13:10'"),
    "length": ("train", [*NEW, "--config.data.length=1"], "data.length must be at least 2"),
    "blocks of the row": (
        "train", [*NEW, *BLOCKS, "--config.objective.block_size=5"], "5 does not divide data.len",
    ),
    "blocks told the time": (
        "train",
        [*NEW, *BLOCKS, "--config.objective.block_size=4", "--config.model.time_conditioning=True"],
        "model.time_conditioning=True: must be False for blocks",
    ),
    "blocks of a run without": (
        "train", [*OLD, *BLOCKS, "--config.objective.block_size=4"], "name is 'diffusion' there",
    ),
    "freeze": ("train", [*NEW, "--config.optimizer.freeze=hed"], "'hed' names .* blocks, .* head"),
    "warm-up": (
        "train", [*NEW, "--config.optimizer.warmup_steps=5"],
        "optimizer.warmup_steps must be at most the run's 4 steps, not 5",
    ),
    "curriculum": (
        "train", [*NEW, "--config.objective.name=mlm", "--config.objective.curriculum_steps=5"],
        "curriculum_steps bounds exact counts: it needs objective.name 'diffusion'",
    ),
    # where it starts
    "start nowhere": (
        "train", [*NEW, "--config.start.checkpoint={folder}/gone"], "no folder at .*gone: accepted",
    ),
    "start of no checkpoint": (
        "train", [*NEW, "--config.start.checkpoint={folder}/other"], "other has no config.json",
    ),
    "start of another width": (
        "train", [*NEW, "--config.start.checkpoint={run}", "--config.model.width=32"],
        "model.width is 32, but the .* of start.checkpoint, which has 16: leave it out",
    ),
    "start of short rows": (
        "train", ["--config=adapt_bert", "--config.start.checkpoint={bert}", "--workdir=x"],
        "data.length is 128, but start.checkpoint has learned only 12 positions",
    ),
    "classes": ("train", [*NEW, "--config.model.classes=3"], "model.classes must be 0"),
    # devices
    "mesh": ("train", [*NEW, "--config.mesh.fsdp=3"], "mesh data=-1, fsdp=3.*1 devices"),
    "rows over devices": (
        "train", [*NEW, "--config.training.batch_size=9"], "9 must be a multiple of the 2",
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    ),
    "no accelerator": (
        "train", NEW, "JAX_PLATFORMS='cuda' is not to be had",
        {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
    ),
    "no platform": (
        "generate", [WRITE], "JAX_PLATFORMS='abacus' is not to be had", {"JAX_PLATFORMS": "abacus"},
    ),
    # text
    "no files": ("train", [*NEW, "--config.data.files="], "data.files"),
    "missing": ("train", [*TEXT[:-1], TEXT[-1] + "/gone*.txt"], "gone.*txt"),
    "empty": ("train", [*TEXT[:-1], TEXT[-1] + "/empty.txt"], "empty.txt.*empty"),
    "binary": ("train", [*TEXT[:-1], TEXT[-1] + "/binary.txt"], "binary.txt.*UTF-8"),
    "torn gz": ("train", [*TEXT[:-1], TEXT[-1] + "/torn.txt.gz"], "torn.txt.gz"),
    "broken line": ("train", [*TEXT[:-1], TEXT[-1] + "/broken.jsonl"], "broken.jsonl.*2"),
    "field": ("train", [*TEXT[:-1], TEXT[-1] + "/fieldless.jsonl"], "fieldless.jsonl.*'?text"),
    "packed pairs": (
        "train", [*NEW, "--config.data.prompt_field=prompt", "--config.data.rows=packed"],
        "rows must be 'padded' for pairs",
    ),
    "talk": (
        "train",
        [*TEXT[:-1], TEXT[-1] + "/talks.jsonl", *TALKS],
        "talks.jsonl, line 1: messages_field 'messages' must end with an assistant's message",
    ),
    "chat template": (
        "train",
        [*TEXT[:-1], TEXT[-1] + "/talks.jsonl", *TALKS, "--config.data.chat_template=gone.jinja"],
        "chat_template must be the path of a Jinja file, there is none at gone.jinja",
    ),
    "file kind": ("train", [*TEXT[:-1], TEXT[-1] + "/notes.pdf"], r"notes.pdf.*\.txt.*\.jsonl"),
    "bucket": ("train", [*TINY, "--workdir=x", "--config.data.files=gs://b/*.txt"], "gs://|gcs"),
    "short corpus": ("train", [*TEXT[:-1], TEXT[-1] + "/short.txt"], "train|documents|tokens"),
    "corpus of a batch": (
        "train", [*NEW, "--config.training.batch_size=99999"], "99999 exceeds the corpus.*rows",
    ),
    "source": (
        "train", ["--config=quickstart", "--config.data.source=wikipedai", "--workdir=x"],
        "wikipedai.*wikipedia_summaries",
    ),
    "useless key": (
        "train", ["--config=quickstart", "--config.data.test_files=a", "--workdir=x"],
        "data.test_files",
    ),
    # tokenizers
    "vocabulary": ("train", [*NEW, "--config.data.vocab_size=20"], "vocab_size 20 is too small"),
    "tokenizer": ("train", [*NEW, "--config.data.tokenizer=wordpeice"], "wordpiece.*'wordpeice'"),
    "no mask": (
        "train", [*NEW, "--config.data.tokenizer={folder}/maskless.json"], r"maskless.*\[MASK\]",
    ),
    "no network": (
        "train", [*NEW, "--config.data.tokenizer=nobody/nothing"], "nobody/nothing",
        {"HF_HUB_ETAG_TIMEOUT": "2", "HTTPS_PROXY": "http://127.0.0.1:9"},
    ),
    # the folder of a run
    "other seed": ("train", [*OLD, "--config.training.seed=3"], "training.seed is 0 there, 3 here"),
    "other data": ("train", [*OLD, "--config.data.length=8"], "data.length is 16 there, 8 here"),
    "no run": ("train", [*TINY, "--workdir={folder}/other"], "holds no run .but thesis.tex"),
    "a file": ("train", [*TINY, "--workdir={text}"], "text.txt: a file is there, it must be"),
    "nowhere": ("generate", ["--workdir=nowhere"], "nowhere is not the folder of a run"),
    "not a run": ("report", ["{folder}/other"], "other is not the folder of a run"),
    "newer": ("evaluate", ["--workdir={folder}/newer"], "format 99, .* reads up to 1"),
    "torn config": ("generate", ["--workdir={folder}/torn"], "config.json, line 1 is not JSON"),
    "unsaved": ("generate", ["--workdir={folder}/unsaved"], "no checkpoint yet"),
    "swapped": ("generate", ["--workdir={folder}/swapped"], "7 entries with the mask at 4"),
    "damaged": (
        "generate", ["--workdir={folder}/damaged"],
        "checkpoints/4 is damaged.*checkpoints/2 is damaged.*there is none before it",
    ),
    "raw of exported": (
        "generate", ["--workdir={folder}/exported", "--weights=params"], "exported.*only 'ema'",
    ),
    "train on exported": ("train", [*TINY, "--workdir={folder}/exported"], "exported.*only 'ema'"),
    "wandb": (
        "train", [*NEW, "--config.training.wandb=a/b"], "training.wandb: Invalid project name",
    ),
    "tensorboard": (
        "train", [*TINY, "--config.training.tensorboard", "--workdir=gs://bucket/run"],
        "training.tensorboard needs a local workdir, not gs://bucket/run",
    ),
    "export into": ("export", [WRITE, "--output={folder}/other"], "other is not an empty folder"),
    "export step": (
        "export", [WRITE, "--output={folder}/new", "--step=3"], r"no .* step 3 .*but of \[2, 4\]",
    ),
    # prompts
    "no gap": ("generate", [WRITE, "--prompt=no gap"], "nothing to fill"),
    "long prompt": ("generate", [WRITE, "--prompt={{mask:17}}"], "17 tokens, a row has 16"),
    "no masks": ("generate", [WRITE, "--prompt=a {{mask:0}}"], r"\{mask:0\} is no gap"),
    "strange": ("generate", [WRITE, "--prompt=漢 [MASK]"], "does not know: '漢'"),
    "no steps": ("generate", [WRITE, "--steps=0"], r"steps=0: 0 is not .*\[1, 100000\]"),
    "few steps": ("generate", [WRITE, "--steps=3", "--blocks=4"], "steps is 3, blocks 4: each"),
    "strategy": ("generate", [WRITE, "--strategy=best"], "best.*exact_count"),
    "threshold": ("generate", [WRITE, "--strategy=threshold(2)"], "tau is 2, .* from 0 to 1"),
    "remask": ("generate", [WRITE, "--strategy=remask(cap)"], r"it is remask\(kind: cap\|.*, eta"),
    "temperature": ("generate", [WRITE, "--temperature=-1"], "--temperature: value is -1.0"),
    "penalty": ("generate", [WRITE, "--repetition_penalty=0"], "penalty is 0.0, .* positive"),
    "nucleus": ("generate", [WRITE, "--top_p=1.5"], "--top_p: p is 1.5, it must be above 0"),
    "forbid": ("generate", [WRITE, "--forbid=river and"], "--forbid: 'river and' is not one token"),
    "forbid none": ("generate", [WRITE, "--forbid=漢"], "'漢' is no token of the model's"),
    "forbid the end": (
        "generate", [WRITE, "--forbid=[SEP]", "--end_of_text"], "no text would end",
    ),
    "guidance": ("generate", [WRITE, "--guidance=2"], "--guidance is for models with classes"),
    "cache": ("generate", [WRITE, "--cache=all"], "cache=all: .*prefix.dual.vicinity"),
    "cache of a window": (
        "generate", [WRITE, "--cache=dual", "--blocks=4"], "attention='local': must be 'full' for",
    ),
    "refresh": ("generate", [WRITE, "--cache=dual", "--refresh=0"], "--refresh=0: 0 is not"),
    "refresh alone": ("generate", [WRITE, "--refresh=4"], "--refresh is of a cache, and none"),
    "sample mesh": ("generate", [WRITE, "--mesh=fdsp=2"], "mesh 'fdsp=2': it must be sizes of"),
    "sample devices": ("generate", [WRITE, "--mesh=fsdp=3"], "mesh .*fsdp=3.*1 devices"),
    "sample heads": (
        "generate", [WRITE, "--mesh=tensor=4"], "tensor=4 does not divide model.heads 2",
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    ),
    "long row": ("generate", [WRITE, "--length=17"], "--length must be from 1 to 16"),
    "label": ("generate", [WRITE, "--label=sport"], "trained without"),
    "prompts file": ("generate", [WRITE, "--prompts={folder}/gone.txt"], "gone.txt"),
    "prompts line": ("generate", [WRITE, "--prompts={folder}/prompts.jsonl"], "line 2 has no text"),
    "unasked": (
        "generate", [WRITE, "--prompts={folder}/talks.jsonl"], "prompt 'hello' has messages: they",
    ),
    "no prompts": ("generate", [WRITE, "--prompts={folder}/empty.jsonl"], "holds no prompt"),
    "two sources": (
        "generate", [WRITE, "--prompt=a [MASK]", "--prompts=b.txt"], "exclude each other",
    ),
    "two outputs": ("generate", [WRITE, "--json", "--watch"], "exclude each other"),
    "output folder": ("generate", [WRITE, "--output={folder}/gone/x.jsonl"], "there is no folder"),
    "other output": ("generate", [WRITE, "--output={folder}/samples.jsonl"], "line 1 is no sample"),
    "output with pages": (
        "generate", [WRITE, "--output={folder}/x.jsonl", "--save"], "--output excludes --html and",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(places, request):
    """Every case that is selected, run two at a time, and all files before and after."""
    names = [item.name for item in request.session.items if item.path == request.path]
    wanted = [case for case in CASES if f"test_bad_input_is_one_line[{case}]" in names]

    def outcome(name, arguments, message, env=None):
        return run(
            name, *arguments, code=None, **{**places, "env": {**places["env"], **(env or {})}}
        )

    before = _state_of(places)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {case: pool.submit(outcome, *CASES[case]) for case in wanted}
        done = {case: future.result() for case, future in futures.items()}
    return done, before, _state_of(places)


def _state_of(places):
    """Files with times and sizes, but those of the cache and the locks."""
    files = (p for p in places["folder"].rglob("*") if not {"cache", "lock"} & {*p.parts})
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


@pytest.mark.timeout(1800)  # the first one waits for all commands
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(outcomes, case):
    done = outcomes[0][case]
    # Two cases run at a time, and one may prepare what the other needs.
    told = re.sub(r"(?m)^waiting for another process that prepares .*\n", "", done.stderr)
    lines = told.strip().splitlines()
    assert done.returncode == 2, done.stdout + done.stderr
    assert lines[-1].startswith("error: ") and len(lines[-1]) < 700
    assert re.search(CASES[case][2], lines[-1]), lines[-1]
    assert len(lines) == 1, done.stderr


def test_nothing_was_changed(outcomes):
    assert outcomes[1] == outcomes[2]


ECHO = """
import asyncio, gc, os
import tensorstore
from mdlm_jax import endings

endings.take_over()

async def wait(future):
    await future

promise, future = tensorstore.Promise.new()
loop = asyncio.new_event_loop()
task = loop.create_task(wait(future))
loop.run_until_complete(asyncio.sleep(0))
loop.close()  # as Orbax does when another write failed
promise.set_result(None)

async def fail():
    raise ValueError("of a read that was given up")

async def abandon():
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)

asyncio.run(abandon())
gc.collect()
asyncio.log.logger.error("something else")

class Other:
    def __del__(self):
        raise ValueError("of another kind")

Other()
os._exit(0)
"""


def test_writes_that_end_after_one_failed_say_nothing():
    done = subprocess.run([sys.executable, "-c", ECHO], capture_output=True, text=True)
    assert done.returncode == 0 and "Event loop is closed" not in done.stderr
    assert "of a read that was given up" not in done.stderr
    assert "ValueError: of another kind" in done.stderr  # all else is still told
    assert "something else" in done.stderr


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of 3 MB, or a skipped test where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if done.returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line_and_what_was_saved_stays_whole(
    places, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the state is rescued to
    flags = (*TINY, "--config.training.steps=60", "--config.evaluation.every=60")
    keep_all = "--config.training.keep_last=100"
    with mounted(tmp_path / "small", "size=3m") as small:
        done = run("train", *flags, keep_all, f"--workdir={small}/run", **{**places, "code": 1})
        assert re.search(r"error: .*[Nn]o space left", done.stderr.splitlines()[-1]), done.stderr
        assert "mdlm_jax/" not in done.stderr  # no traceback of ours
        shutil.copytree(small / "run", tmp_path / "larger")
    done = run("train", *flags, keep_all, f"--workdir={tmp_path}/larger", **places)
    assert "resuming at step" in done.stdout


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_in_one_line(places, tmp_path):
    with mounted(tmp_path / "fixed", "ro") as fixed:
        done = run("train", *TINY, f"--workdir={fixed}/run", **{**places, "code": 2})
        assert re.search(r"error: .*fixed/run: Read-only file system", done.stderr)
        assert len(done.stderr.splitlines()) == 1
