"""What checking a backbone found, as a table and as plain data."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["BackboneError", "BackboneReport", "Result", "Status"]


class Status(Enum):
    """How a property fared."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    """The network declined with an error that says why; it did not crash, and gave nothing wrong."""
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class Result:
    """One property of a network.

    Args:
        name: of the property.
        status: how it fared.
        detail: the smallest counter-example and what went wrong, why it was refused, or why it does not apply.
        seconds: that it took.
    """

    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0


class BackboneError(AssertionError):
    """A network lacks properties that a backbone should have.

    Attributes:
        report: all that was found.
    """

    def __init__(self, report: "BackboneReport") -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class BackboneReport:
    """What was found, property by property; ``print`` it for a table.

    Args:
        network: name of the network's class.
        results: in the order in which they were checked.
    """

    network: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no property failed and no size was refused."""
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """Results that failed or were refused."""
        return tuple(result for result in self.results if result.status in (Status.FAILED, Status.REFUSED))

    def __getitem__(self, name: str) -> Result:
        """Return the result of a property.

        Raises:
            KeyError: if it was not checked.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"{name} was not checked; these were: {', '.join(result.name for result in self.results)}")

    def raise_for_failures(self) -> None:
        """Raise if a property failed or a size was refused.

        Raises:
            BackboneError: with all of them.
        """
        if not self.ok:
            raise BackboneError(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strings, numbers and lists."""
        return {
            "network": self.network,
            "results": [
                {"name": r.name, "status": r.status.value, "detail": r.detail, "seconds": round(r.seconds, 2)}
                for r in self.results
            ],
        }

    def __str__(self) -> str:
        counts = Counter(result.status for result in self.results)
        said = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
        seconds = sum(result.seconds for result in self.results)
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"{self.network}: {said or 'nothing checked'}, {seconds:.1f} s"]
        for result in self.results:
            head = f"  {result.name:<{width}}  {result.status.value:<7} {result.seconds:5.1f} s"
            first, *rest = result.detail.splitlines() or [""]
            lines.append(f"{head}  {first}".rstrip())
            lines += [f"{'':{len(head) + 2}}{line}" for line in rest]
        return "\n".join(lines)
