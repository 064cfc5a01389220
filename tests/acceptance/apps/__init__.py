"""Apps as users write them, for `zart worker --app`: their steps note what they do, and hang or die on command."""
