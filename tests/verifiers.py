"""Verifiers of tests' own tasks."""


def any_text(text: str, answer: str) -> tuple[str | None, bool]:
    """Calls every text a right answer, so that a random model has something to be trained on."""
    return answer or "any", True
