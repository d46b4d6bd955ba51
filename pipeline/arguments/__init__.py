"""The command line's options: what each is called and says (`flags`), an object for each command's; how commands end.

May import `plan` and below.
"""
