"""What a Dockerfile says, stage by stage, and its build steps carried out without a container engine."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.outside import run


@dataclass(frozen=True)
class Instruction:
    """One instruction; `words` are what follows its name, continuation lines joined, comments left out."""

    name: str
    words: str

    @property
    def flags(self) -> dict[str, str]:
        """The options in front, such as `--from=wheel`."""
        return dict(re.findall(r"--([\w-]+)=(\S+)", re.match(r"(?:--\S+\s+)*", self.words)[0]))  # type: ignore[index]

    @property
    def rest(self) -> str:
        """What follows the options."""
        return re.sub(r"^(?:--\S+\s+)*", "", self.words)


@dataclass
class Stage:
    """One stage: what it grows from, and its instructions."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Returns the stages by name, in the order of the file."""
    found: dict[str, Stage] = {}
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, words = line.strip().partition(" ")
        if name == "FROM":
            parent, _, stage = words.partition(" AS ")
            found[stage] = Stage(stage, parent)
        elif name and found:
            list(found.values())[-1].instructions.append(Instruction(name, words.strip()))
    return found


def lineage(found: dict[str, Stage], name: str) -> list[Stage]:
    """Returns the stage and what it grows from, the oldest first."""
    stage = found[name]
    return [*(lineage(found, stage.parent) if stage.parent in found else []), stage]


def copied(instruction: Instruction) -> tuple[list[str], str]:
    """Returns the sources and the destination of a COPY."""
    *sources, destination = json.loads(instruction.rest) if "[" in instruction.rest else instruction.rest.split()
    return sources, destination


def carry_out(found: dict[str, Stage], name: str, context: Path, root: Path) -> None:
    """Runs what builds a stage under `root` instead of `/`: its copies, its RUN steps, after those of what it needs.

    The Python of this process stands for that of the image. What is copied from another stage lies there already.

    Raises:
        RuntimeError: a step failed; the text is its output.
    """
    source = root / "src"
    source.mkdir(parents=True, exist_ok=True)
    variables: dict[str, str] = {}
    for stage in lineage(found, name):
        if stage.name == "python":  # checks the base image, which is not used here
            continue
        for instruction in stage.instructions:
            if instruction.name == "ARG" and "=" in instruction.words:
                key, value = instruction.words.split("=", 1)
                variables[key] = value.strip('"')
            elif instruction.name == "COPY" and "from" in instruction.flags:
                carry_out(found, instruction.flags["from"], context, root)
            elif instruction.name == "COPY":
                _copy(instruction, context, source)
            elif instruction.name == "RUN" and not (root / _done(stage)).exists():
                script = instruction.rest.replace("/opt/", f"{root}/opt/").replace("python -m", f"{sys.executable} -m")
                ended = run("sh", "-euc", script, cwd=source, timeout_s=560, **variables)
                if ended.returncode != 0:
                    raise RuntimeError(f"stage {stage.name}: {script}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
        (root / _done(stage)).touch()


def _done(stage: Stage) -> str:
    return f"{stage.name}.done"


def _copy(instruction: Instruction, context: Path, source: Path) -> None:
    sources, destination = copied(instruction)
    for path in sources:
        from_path, to_path = context / path, source / destination
        if from_path.is_dir():
            shutil.copytree(from_path, to_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(from_path, to_path)
