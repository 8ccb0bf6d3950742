"""raysnap: fine-tune a population of image models on Ray, keep every shared block once, search for the best start."""
