"""Results of a run: pictures, films, comparisons, evaluation and export."""
