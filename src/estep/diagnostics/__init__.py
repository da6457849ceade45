"""What goes wrong inside the EM: figures for each iteration, and warnings with a reason and a suggestion.

`cheap` figures come from the samples that a run has anyway. `full` ones need log-probabilities: of the correct samples
under both prompts (`estep.scoring`), and of four plain samples per validation question after each iteration. Nothing
here changes what a run computes. docs/diagnostics.md says how the thresholds were chosen.
"""

from estep.diagnostics.diagnosis import Diagnosis

__all__ = ["Diagnosis"]
