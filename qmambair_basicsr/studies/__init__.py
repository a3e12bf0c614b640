"""Libraries behind the commands that study a network: ablation, complexity, plots, result tables, the demo."""
