"""What pruning costs in answers: methods and budgets on the same questions, with uncertainty."""
