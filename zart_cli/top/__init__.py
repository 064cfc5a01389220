"""`zart top`: a live view. It only reads, and its looks cost little however much work there is."""
