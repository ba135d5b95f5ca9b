"""Signatures of manifests by an SSH key: `novelsum sign`, and what `novelsum verify` checks of them.

Belongs here: which manifests are signed, calling `ssh-keygen`. Does not: what a manifest states (`selection.subset`,
`report.card`), other comparisons (`verify`).

A manifest has the SHA-256 of files of its folder, which its signature covers: of a data card all, of a subset
`picks.parquet`, `subset.jsonl` and `original/`. Signatures are in a folder of their own,
`signatures/<folder of the manifest>/manifest.json.sig`: the signed folders never change.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from novelsum_dagster.artifacts.layout import SIGNATURES, output_folder, record_file
from novelsum_dagster.artifacts.provenance import damaged_files, read_record
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import replacing

NAMESPACE = "novelsum"
"""Of the signatures, so that one made for another purpose is not taken for one of these."""
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Signed:
    """A signature, the manifest that it is of, and the key of the output."""

    signature: Path
    manifest: Path
    key: str


def cards_of(root: Path, selection: str) -> list[str]:
    """Return the folders of a subset's data cards, in the storage folder.

    Raises:
        InputError: if a card or its record is damaged.
    """
    records = (read_record(root, path.parent.name, path.stem) for path in root.glob(record_file("data_card", "*")))
    cards = [made for made in records if made.inputs["selected_subset"] == selection]
    if damaged := [line for made in cards for line in damaged_files(root, made)]:
        raise InputError("nothing was signed:\n" + "\n".join(f"  {line}" for line in damaged))
    return sorted(output_folder("cards", made.output) for made in cards)


def sign_manifests(root: Path, folders: Iterable[str], key: Path) -> list[Path]:
    """Sign the manifests of outputs; return the signatures. An earlier signature is replaced.

    Args:
        root: the storage folder.
        folders: of the outputs, in the storage folder.
        key: private key, as `ssh-keygen` takes it; a public one is looked up in the SSH agent.

    Raises:
        InputError: if `ssh-keygen` is missing, or does not sign.
    """
    if not key.is_file():
        raise InputError(f"--key {key}: no such file; ssh-keygen -t ed25519 makes a key")
    made = []
    for folder in folders:
        path = root / SIGNATURES / folder / f"{_MANIFEST}.sig"
        done = _ssh_keygen("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, given=root / folder / _MANIFEST)
        if done.returncode:
            raise InputError(f"--key {key}: {_said(done)}")
        with replacing(path) as temporary:
            temporary.write_bytes(done.stdout)
        made.append(path)
    return made


def signatures_of(root: Path) -> Iterator[Signed]:
    """Yield all signatures in a storage folder."""
    for path in sorted((root / SIGNATURES).glob(f"*/*/{_MANIFEST}.sig")):
        folder = path.parent.relative_to(root / SIGNATURES)
        yield Signed(path, root / folder / _MANIFEST, folder.name.partition("=")[2])


def verified_signature(signed: Signed, allowed_signers: Path) -> str:
    """Return why a signature does not hold; empty if one of the allowed keys made it.

    Args:
        signed: the signature.
        allowed_signers: lines of a name and a public key; ssh-keygen(1) describes the form.

    Raises:
        InputError: if `ssh-keygen` or the file is missing.
    """
    if not allowed_signers.is_file():
        raise InputError(f"--allowed-signers {allowed_signers}: no such file; its lines are: NAME PUBLIC-KEY")
    if not signed.manifest.is_file():
        return f"{signed.manifest}, which was signed, is missing"
    given = ("-s", str(signed.signature), "-f", str(allowed_signers))
    known = _ssh_keygen("-Y", "find-principals", *given)
    if known.returncode:
        return f"no key in {allowed_signers} made it"
    name = known.stdout.decode(errors="replace").splitlines()[0].split(",")[0]
    done = _ssh_keygen("-Y", "verify", *given, "-I", name, "-n", NAMESPACE, given=signed.manifest)
    return f"it is not a signature of {signed.manifest} ({_said(done)})" if done.returncode else ""


def _ssh_keygen(*arguments: str, given: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run `ssh-keygen` with the content of a file as its input."""
    command = shutil.which("ssh-keygen")
    if command is None:
        raise InputError("ssh-keygen is not installed; on Debian and Ubuntu: apt-get install openssh-client")
    content = given.read_bytes() if given else b""
    return subprocess.run([command, *arguments], input=content, capture_output=True, check=False)


def _said(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ssh-keygen ended with {done.returncode}"
