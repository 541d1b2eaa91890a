"Statistics of a comparison: intervals, levels of looks, equivalence, verdicts, further seeds, factorial effects, multiple testing"
