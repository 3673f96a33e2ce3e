"""The blocks of code in the documentation, and a scratch copy of the checkout to run them in."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LIMIT_SEC = 280


def heed_interrupts():
    """Lets a child end at Ctrl-C, also where the tests themselves run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; its first line may be a comment that names its file."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self):
        found = re.match(r"# ([a-z_]+\.(?:py|toml))\n", self.text)
        return found[1] if found else None

    @property
    def commands(self):
        """The commands of a bash block, each on one line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = (" ".join(re.sub(r"(^|\s+)#\s.*$", "", line).split()) for line in lines)
        return [line for line in bare if line]

    def __str__(self):
        return f"{self.page}:{self.line} {self.language}"


@dataclass(frozen=True, kw_only=True)
class Small:
    """How a command is run in small, and how it then ends.

    Attributes:
        words: What is put behind it.
        swap: What in it is replaced by what, where words behind it cannot override.
        code: Its exit code.
        says: What it must say.
        after: Commands that have to be run before.
        stopped: Whether it goes on until Ctrl-C.
    """

    words: str = ""
    swap: tuple[str, str] = ("", "")
    code: int = 0
    says: str = ""
    after: tuple[str, ...] = ()
    stopped: bool = False


def blocks_of(page):
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    return [
        Block(page=name, line=text.count("\n", 0, found.start()) + 1, language=found[1], text=found[2]) for found in FENCE.finditer(text)
    ]


def blocks():
    return [block for page in PAGES for block in blocks_of(page)]


class Scratch:
    """A copy of the checkout as it stands, where every command is run once and its outcome kept."""

    def __init__(self, folder, table):
        self.folder, self.programs, self._table, self._done = folder / "checkout", folder / "bin", table, {}
        self.programs.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.folder / name)
        for block in blocks():
            if block.file:
                (self.folder / block.file).write_text(block.text)
        apart = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NOX", "WORLD", "RANK"))}
        self._environment = apart | {
            "PATH": os.pathsep.join([str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def small(self, command):
        """Returns how a command is run; a key that ends in ` ...` stands for all that begin so."""
        keys = [key for key in self._table if command == key or (key.endswith(" ...") and command.startswith(key[:-3]))]
        return self._table[keys[0]] if keys else Small()

    def begin(self, pool, commands):
        """Begins commands that share nothing with others, one after the other, while others run."""
        self._done |= {command: pool.submit(self._ended, command) for command in commands}

    def _ended(self, command):
        small = self.small(command)
        return self._shell(f"{command.replace(*small.swap)} {small.words}".strip(), stopped=small.stopped)

    def run(self, command):
        """Runs a command, unless that has been done, and checks how it ends."""
        if command not in self._done:
            for earlier in self.small(command).after:
                self.run(earlier)
            with ThreadPoolExecutor(1) as alone:  # whose future keeps also what is raised, such as the limit's end
                self._done[command] = alone.submit(self._ended, command)
        code, said, seconds = self._done[command].result()
        expected = self.small(command)
        end = "\n".join(said.splitlines()[-40:])
        assert code == expected.code, f"{command}\nended with {code}, not {expected.code}, after {seconds:.0f} s:\n{end}"
        assert expected.says in said, f"{command}\ndid not say {expected.says!r}:\n{end}"
        assert "Traceback" not in said, end
        if code == 2:
            assert len(re.findall("^error: ", said, flags=re.MULTILINE)) == 1, end
        return said

    def script(self, block):
        """Runs a block of Python in a process of its own."""
        small = self.small(f"python of {block.page}")
        for earlier in small.after:
            self.run(earlier)
        (self.folder / ".block.py").write_text(block.text)
        code, said, _ = self._shell(f"python .block.py {small.words}")
        assert code == 0, f"{block}\n{said[-3000:]}"

    def _shell(self, line, *, stopped=False):
        begun = time.monotonic()
        with subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,  # noqa: PLW1509  (it sets a signal and no more)
        ) as process:
            try:
                first = process.stdout.readline() if stopped else ""
                if stopped:
                    os.killpg(process.pid, signal.SIGINT)
                said = first + process.communicate(timeout=LIMIT_SEC)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, said, time.monotonic() - begun
