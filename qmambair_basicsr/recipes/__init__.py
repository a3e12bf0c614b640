"""Tables of networks, tasks and recipes, and the option files made from them."""
