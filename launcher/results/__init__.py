"""Results of a run: pictures, films, comparisons and export."""
