"""Verifiers of tests' own tasks."""


def any_text(text: str, answer: str) -> tuple[str | None, bool]:
    """Calls every text a right answer, so that a random model has something to be trained on."""
    return answer or "any", True


def even_length(text: str, answer: str) -> tuple[str | None, bool]:
    """Calls about every second text of a random model a right answer."""
    return answer or "any", len(text) % 2 == 0
