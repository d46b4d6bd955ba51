"""The commands' part of publishing: the checks before the work, and the upload after it."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.plan import BuildRequest, prepare
from pipeline.problem import Problem, WrongRequestError
from pipeline.progress import PlainProgress
from pipeline.publish import preconditions
from pipeline.publish.preconditions import Destination, SourceModel
from pipeline.publish.push import push
from pipeline.publish.sign import key_problem, sign
from pipeline.stages.install import recover
from pipeline.stages.place import write_problem
from runtime.artifact.signature import SIGNATURE_NAME
from runtime.host.machine import Gpu


def check_before_run(
    request: BuildRequest, cache: Path | None, *, pushing: bool, sign_key: Path | None, gpu: Gpu | None = None
) -> Destination | None:
    """Check the plan and what publishing needs together, so that everything wrong is told before anything starts.

    Raises:
        WrongRequestError: with every problem of both.
    """
    problems: list[Problem] = []
    models: tuple[SourceModel, ...] = ()
    try:
        models = preconditions.source_models(prepare.prepare(request, cache, gpu=gpu).plan)
    except WrongRequestError as error:
        problems += error.problems
    destination = None
    if pushing:
        destination, found = preconditions.check_destination(models, sign_key)
        problems += found
    elif sign_key and (problem := key_problem(sign_key)):
        problems.append(problem)
    if problems:
        raise WrongRequestError(list(dict.fromkeys(problems)))
    return destination


def publish(folder: Path, destination: Destination | None, sign_key: Path | None) -> None:
    """Upload a finished artifact to its destination; without one, only sign it where a key is given.

    Raises:
        StageError: the upload failed.
        ArtifactError: the artifact cannot be signed.
    """
    if destination is None:
        if sign_key:
            sign(folder, sign_key)
            typer.echo(f"signed: {folder / SIGNATURE_NAME}")
        return
    destination = preconditions.renewed(destination)
    # Plain lines: the client draws a bar for each file, with bytes and rate, on the same terminal.
    with PlainProgress() as steps:
        published = push(folder, destination, sign_key, steps)
    done = f"sent {published.sent} files" if published.sent else "nothing had changed"
    typer.echo(f"published: {published.url} at {published.commit} ({done}, {published.unchanged} were there)")
    typer.echo(f"serve it: ARTIFACT=hf:{published.repo}@{published.commit} yap-runtime")


def push_artifact(folder: Path, sign_key: Path | None) -> None:
    """Check everything that publishing an artifact needs, then publish it.

    Raises:
        WrongRequestError: with every problem; nothing was sent.
        StageError: the upload failed.
    """
    recover(folder)
    metadata, problems = preconditions.check_artifact(folder, signing=sign_key is not None)
    if sign_key and (unwritable := write_problem(folder)):
        problems.append(unwritable)
    models = preconditions.source_models(metadata) if metadata else ()
    destination, found = preconditions.check_destination(models, sign_key)
    if problems or found:
        raise WrongRequestError([*problems, *found])
    publish(folder, destination, sign_key)


def sign_artifact(folder: Path, sign_key: Path) -> None:
    """Sign an artifact with a private key.

    Raises:
        WrongRequestError: the key cannot sign.
        ArtifactError: the artifact cannot be read, or a file changed.
    """
    recover(folder)
    if problems := [problem for problem in (key_problem(sign_key), write_problem(folder)) if problem]:
        raise WrongRequestError(problems)
    publish(folder, None, sign_key)
