"""How good a model is: BSSEval scores of it over songs."""
