"""Many runs side by side: means and intervals over seeds, comparisons, charts, reports."""
