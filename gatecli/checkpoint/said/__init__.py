"""What a checkpoint, or what lies beside it, says of its network and of its images.

Names in it choose among known architectures: nothing is imported or fetched on a file's word, and
tensors are believed before words.
"""
