"""`stemwise reproduce`: its command makes the same run again, and it says what differs today."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stemwise import grammar, model_file
from stemwise.commands import reproduce
from stemwise.running import provenance
from stemwise.running.provenance import FILE
from tiny import TINY

RUN = Path("run")


def change(run: Path, edit) -> None:
    """Edits the record, as if the run had been made then."""
    found = json.loads((run / FILE).read_text())
    edit(found)
    (run / FILE).write_text(json.dumps(found))


@pytest.fixture
def made(train) -> Path:
    assert train("trainer.max_steps=1").code == 0
    return RUN


def test_a_run_that_was_just_made_differs_in_nothing(made, stemwise, songs):
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    done = stemwise("reproduce", made)
    assert done.code == 0, done.output
    assert "Nothing differs that can change the result." in done.output
    assert f"data.root={songs}" in done.output
    assert done.output.startswith("stemwise train ")
    assert "hydra.run.dir" not in done.output  # which would overwrite it
    assert "→" not in done.output
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.slow
def test_the_command_makes_the_same_run_through_a_shell(stemwise, songs, tmp_path):
    """The line that is printed, in a real shell; a song's name that only quotes hold together."""
    root = tmp_path / "it's [my] songs"
    keys = ["data=folders", f"data.root={grammar.text(str(root))}", *TINY]
    for split in ("train", "valid"):
        for source in sorted(songs.glob("Song *"))[:2]:
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / source.name).symlink_to(source)
    assert stemwise("train", *keys, "hydra.run.dir=one", "trainer.max_steps=2", "augment=none").code == 0
    asked = stemwise("reproduce", "one")
    assert asked.code == 0, asked.output
    command = f"{shlex.quote(sys.executable)} -m stemwise.cli train"
    line = asked.output.splitlines()[0].replace("stemwise train", command, 1)
    again = subprocess.run(["bash", "-ec", f"{line} hydra.run.dir=two"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    one, two = (model_file.load(tmp_path / name / "model.safetensors").state_dict() for name in ("one", "two"))
    assert all((one[name] == two[name]).all() for name in one)


def copied(songs: Path, root: Path) -> Path:
    return Path(shutil.copytree(songs, root))


def test_a_song_that_changes_or_goes_is_named(train, stemwise, songs, tmp_path):
    root = copied(songs, tmp_path / "mine")
    keys = [f"data.root={root}", f"data.train={root}/train.csv", f"data.valid={root}/valid.csv"]
    assert train("trainer.max_steps=1", *keys).code == 0
    song = root / "Song 1/vocals.wav"
    content = song.read_bytes()
    song.write_bytes(content[:-2] + b"xx")
    done = stemwise("reproduce", RUN)
    assert done.code == 1
    assert "train: Song 1/vocals.wav: SHA-256" in done.output
    assert "can change the result" in done.output
    song.unlink()
    done = stemwise("reproduce", RUN)
    assert done.code == 1
    assert "train: Song 1/vocals.wav: " in done.output
    assert "→ gone" in done.output
    song.write_bytes(content)
    assert stemwise("reproduce", RUN).code == 0
    with (root / "valid.csv").open("a") as file:
        file.write(",".join(f"Song 1/{stem}.wav" for stem in ("vocals", "drums", "bass", "other")) + "\n")
    done = stemwise("reproduce", RUN)
    assert done.code == 1
    assert "valid: songs: 1 → 2, with Song 1" in done.output
    (root / "valid.csv").unlink()
    assert "no such index CSV" in stemwise("reproduce", RUN).output


def test_songs_that_were_moved_are_found_where_a_key_says(train, stemwise, songs, tmp_path):
    old, new = copied(songs, tmp_path / "old"), tmp_path / "new"
    keys = [f"data.root={old}", f"data.train={old}/train.csv", f"data.valid={old}/valid.csv"]
    assert train("trainer.max_steps=1", *keys).code == 0
    old.rename(new)
    assert stemwise("reproduce", RUN).code == 1
    done = stemwise("reproduce", RUN, *(key.replace("old", "new") for key in keys))
    assert done.code == 0, done.output
    assert str(old) not in done.output.splitlines()[0]
    done = stemwise("reproduce", RUN, "data.roof=x")
    assert done.code == 2
    assert "data.roof" in done.output


def test_other_versions_and_another_machine_are_named(made, stemwise):
    def older(found):
        environment = found["starts"][0]["environment"]
        environment["versions"].update(torch="1.0", wandb="0.1")
        environment["hardware"]["cpu"] = "Z80"
        environment["code"] = {"sha256": "0" * 64, "commit": "abc123", "dirty": True}

    change(made, older)
    done = stemwise("reproduce", made)
    assert done.code == 1
    serious, harmless = done.output.split("Differs, without changing the result:")
    assert "versions.torch: 1.0 → " in serious
    assert "hardware.cpu: Z80 → " in serious
    assert "code.sha256: 000" in serious
    assert "versions.wandb: 0.1 → " in harmless
    assert "git checkout abc123, with changes that were not committed" in done.output


def test_a_default_that_has_changed_goes_into_the_command(made, stemwise):
    def older(found):
        config = found["starts"][0]["config"]
        config["optimizer"]["lr"] = 0.125
        config["stem_sets"]["1"] = ["it's, odd"]
        config["gone"] = {"key": 3}
        del config["compile"]

    change(made, older)
    done = stemwise("reproduce", made)
    line = done.output.splitlines()[0]
    assert "optimizer.lr=0.125" in shlex.split(line)
    assert "config: optimizer.lr, by default: 0.125 → 0.0001; in the command" in done.output
    assert "config: gone.key: 3 → no such key" in done.output
    assert "config: compile: no such key → None" in done.output
    assert done.code == 1  # the key that is gone
    again = reproduce._compose(shlex.split(line)[2:], made)
    assert again["optimizer"]["lr"] == 0.125
    assert again["stem_sets"]["1"] == ["it's, odd"]


def test_a_key_that_is_no_more_is_left_out_of_the_command_and_named(made, stemwise):
    change(made, lambda found: found["starts"][0]["overrides"].append("data.flavour=sweet"))
    done = stemwise("reproduce", made)
    assert done.code == 1
    assert "config: data.flavour=sweet: accepted → refused, " in done.output
    assert "flavour" not in done.output.splitlines()[0]


@pytest.mark.parametrize("keys", [[[], ["ckpt_path=last"]], [["resume=auto"], ["resume=auto"]]], ids=["last", "auto"])
def test_a_resumed_run_is_the_one_that_went_on_to_the_end(train, stemwise, keys):
    assert train("trainer.max_steps=1", *keys[0]).code == 0
    assert train("trainer.max_steps=2", *keys[1]).code == 0
    done = stemwise("reproduce", RUN)
    assert done.code == 0, done.output
    words = shlex.split(done.output.splitlines()[0])
    assert "trainer.max_steps=2" in words
    assert not [word for word in words if word.startswith(("ckpt_path", "resume"))]
    assert "start 2 of 2: config: trainer.max_steps: 1 → 2" in done.output
    assert train("trainer.max_steps=3", "ckpt_path=last", "optimizer.lr=0.5").code == 0
    done = stemwise("reproduce", RUN)
    assert done.code == 1
    assert "start 3 of 3: config: optimizer.lr: 0.0001 → 0.5" in done.output


def test_from_elsewhere_the_command_goes_to_its_folder_first(made, stemwise, tmp_path, monkeypatch):
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    done = stemwise("reproduce", tmp_path / RUN)
    assert done.code == 0, done.output
    assert done.output.startswith(f"cd {shlex.quote(str(tmp_path))} && stemwise train ")


def test_a_folder_that_is_no_run_is_a_wrong_use(stemwise, tmp_path):
    done = stemwise("reproduce", tmp_path)
    assert done.code == 2
    assert "no such file" in done.output


def test_nothing_in_a_record_is_executed(made, stemwise, tmp_path):
    """It may be a stranger's: the config can name any function of any package."""

    def hostile(found):
        start = found["starts"][0]
        start["overrides"] += ["+data.dataset={_target_: os.system, command: 'touch ran'}", "data.train=null"]
        start["overrides"] += ["augment={x: {_target_: os.mkdir, path: ran}}"]

    change(made, hostile)
    done = stemwise("reproduce", made)
    assert done.code in (0, 1), done.output
    assert not Path("ran").exists()
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    change(made, lambda found: found["starts"][0]["overrides"].append("hydra.searchpath=[pkg://evil]"))
    sys.path.insert(0, str(tmp_path))
    try:
        done = stemwise("reproduce", made)
    finally:
        sys.path.remove(str(tmp_path))
    assert done.code in (0, 1), done.output
    assert "pkg://" in done.output
    assert not Path("ran").exists()


def test_a_model_file_says_nothing_of_paths(made, tmp_path):
    _, facts = model_file.read(made / "model.safetensors")
    assert str(tmp_path) not in json.dumps(facts)
    assert str(tmp_path) in json.dumps([start.directory for start in provenance.read(made).starts])
