"""Pictures that results show, and the store of drawn samples."""
