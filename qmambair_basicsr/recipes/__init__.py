"""Where option files come from: tables of networks, tasks and recipes, and the files made from them."""
