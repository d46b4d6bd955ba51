"""GitHub's workflows without GitHub: their expressions, their matrices, and the shell of their steps."""
