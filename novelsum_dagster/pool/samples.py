"""What a sample is: its turns, its text, and the id that follows from them.

Belongs here: `Turn`, the id, the text that is embedded, `Reject`. Does not: how records are written in files.
"""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a sample: `role` is system, user, assistant or tool."""

    role: str
    text: str


class Reject(Exception):
    """A record that is no sample: `reason` is one of a few fixed words, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def sample_id(turns: list[Turn]) -> str:
    """Return the sample's id: 32 hexadecimal digits that depend on roles and texts alone.

    The same conversation has the same id in every file, at every position, in every format.
    """
    canonical = json.dumps([[turn.role, turn.text] for turn in turns], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def joined_text(turns: list[Turn]) -> str:
    """Return the text that is embedded: all turns joined by a newline (paper, section 3; published code)."""
    return "\n".join(turn.text for turn in turns)
