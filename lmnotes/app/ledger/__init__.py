"Commands that put many comparisons together"
