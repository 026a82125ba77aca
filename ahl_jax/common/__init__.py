"""What every room uses: errors, files, words, progress."""
