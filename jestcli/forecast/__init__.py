"""Would JEST pay on these data? What a reference sees of a pool, short races, and an answer."""
