"""Do restored images still say what their captions say? Table 3: preference scores of every row of a table."""
