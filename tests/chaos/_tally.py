"""What an attack tried and what survived, by kind, with the first failure of each."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

_SHOWN = 300


@dataclass
class Row:
    attack: str
    kind: str
    tried: int = 0
    survived: int = 0
    first_failure: str = ""


class Tally:
    """Counts by (attack, kind)."""

    def __init__(self, attack: str = "") -> None:
        self.attack = attack
        self.rows: dict[tuple[str, str], Row] = {}

    def count(self, kind: str, failure: str | None, times: int = 1) -> None:
        """Note one try, or several that were judged together; None: it survived."""
        row = self.rows.setdefault((self.attack, kind), Row(self.attack, kind))
        row.tried += times
        row.survived += times if failure is None else 0
        if failure is not None and not row.first_failure:
            row.first_failure = " ".join(failure.split())[:_SHOWN]

    def add(self, rows: list[dict]) -> None:
        """Take over what another tally saved."""
        for row in rows:
            own = self.rows.setdefault(
                (row["attack"], row["kind"]), Row(row["attack"], row["kind"])
            )
            own.tried += row["tried"]
            own.survived += row["survived"]
            own.first_failure = own.first_failure or row["first_failure"]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps([asdict(row) for row in self.rows.values()], indent=1))

    @property
    def failed(self) -> bool:
        return any(row.survived < row.tried for row in self.rows.values())

    def table(self) -> str:
        """One line a kind and one a sum, for a screen and for Markdown."""
        lines = ["| attack | kind | tried | survived | first failure |", "|---|---|---|---|---|"]
        for attack in dict.fromkeys(attack for attack, _ in self.rows):
            rows = sorted(
                (r for r in self.rows.values() if r.attack == attack), key=lambda r: r.kind
            )
            lines += [
                f"| {r.attack} | {r.kind} | {r.tried} | {r.survived} | "
                f"{r.first_failure.replace('|', '/')} |"
                for r in rows
            ]
            tried, survived = (sum(getattr(r, n) for r in rows) for n in ("tried", "survived"))
            lines.append(f"| **{attack}** | all | **{tried}** | **{survived}** | |")
        return "\n".join(lines)
