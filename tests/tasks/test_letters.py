"""Reading a choice: every letter is read alike."""

from itertools import permutations

import pytest

from estep.tasks.answers import ChoiceAnswer

# What follows "Answer: ". {L} is the letter, {l} the same in lower case, {M} and {N} are two others.
STATES_L = [
    *("{L}", "{l}", "{L}.", "{L})", "({L})", "**{L}**", "[{L}]", "`{L}`", "${L}$", '"{L}"', "{L}!", "_{L}_"),
    *("option {L}", "Option ({L})", "Choice {L}.", "option {l}", "{L} because it is warm", "{l} since it is warm"),
    *("{L}, as it is warm", "{L} is correct", "{L} is the best answer", "{L}. Paris", "{L}) the Moon", "{L}: a mirror"),
    *("({L}) Paris", "**{L}** mirror", "{L} (a mirror)", "{L} - Paris", "{L}\u2014the Moon", "{L}, the Moon"),
    *("{L}. Vitamin {M}", "{L}. Both {M} and {N}", "{L}. Neither {M} nor {N}", "{L}. {M} mirror reflects"),
    *("{L} because {M} mirror only reflects", "{L}. Answer: {L}", "{L}\n{M} is wrong"),
    *("{L}. 100°{M}", "{L}. 20 °{M}", "{L}. 10 {M}", "{L}. Washington, {M}.{N}.", "{L}. 400 {M}.{N}."),
    *("{L}. {M}. {N}. Salinger", "{L}. By {M}. {N}. Salinger", "\u201c{L}\u201d", "\\text{{{L}}}"),
]
STATES_NONE = [
    *("{L} mirror", "{l} mirror", "{L} Mirror", "{L} 5 kg mass", "{L}-level", "{L}.{M}.", "{L}+", "{L}'s", "{L}{M}"),
    *("{L} or {M}", "{L}/{M}", "{L}, {M}", "{L} and {M}", "{L} {M}", "{L}; {M}", "{L} & {M}", "{L}-{M}", "{L} to {M}"),
    *("({L}) or ({M})", "**{L}** and **{M}**", "{l}, {m}", "{l}) or {m})", "{L} or option {M}", "option {L} or {M}"),
    *(
        "{L}. {M}.",
        "{L}. {M}. {N}.",
        "{L}. Or {M}",
        "{L}. Or {M} maybe",
        "{L} (or {M})",
        "{L} (the Sun) or {M} (the Moon)",
    ),
    *("{L} (x), {M} (y)", "{L}. Sun {M}. Moon", "{L}. No, {M}", "{L}. Actually {M}", "{L}. The answer is {M}"),
    *("{L} is wrong", "{L} is wrong, so {M}", "{L} because {M} is wrong", "{L} but not {M}", "{L} ({M})", "not {L}"),
    *("{L}. Both {L} and {M}", "{L}. {M} and {N}", "{L}. Answer: {M}", "{L}\n- {M} is wrong", "Both {L} and {M}"),
    *("\n{L}. Paris\n{M}. Rome", "{L}\nNo, {M}.", "{L}\n\n{M}", "{L}. 4 {M}. 5 {N}. 6", "{L}. Or {M}.{N}."),
    "{L}. No, {M}. {N}. Neither",
]


@pytest.mark.parametrize("choices", ["ABCD", "ABCDEFGHIJ"])
@pytest.mark.parametrize("form", [*STATES_L, *STATES_NONE])
def test_every_letter_is_read_alike(form: str, choices: str) -> None:
    spec = ChoiceAnswer(type="choice", choices=choices)
    for letters in permutations(choices, 3):
        first, second, third = letters
        said = form.format(L=first, l=first.lower(), M=second, m=second.lower(), N=third)
        expected = first if form in STATES_L else None
        parsed = spec.parse(f"It is warm. Answer: {said}")
        assert (parsed and parsed.answer) == expected, said
