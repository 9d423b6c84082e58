"""What can keep a mesh from running on this machine.

    StackError
    ├── AlreadyRunning    this state folder has a mesh
    ├── BinaryMissing     a server is not installed
    ├── FolderUnusable    the state folder cannot be written or entered
    ├── NotRunning        this state folder has no mesh
    ├── PortTaken         the edge's address is in use, or all others are
    ├── StartFailed       a server died or stayed unready, with the end of its log, or could not be made ready
    └── StateTooNew       the folder, or a database, was written by a later version

The text of each is for the person at the terminal: what is wrong and what to do about it.
"""


class StackError(Exception):
    """Something that the person who runs the mesh has to know or to change."""


class AlreadyRunning(StackError):
    pass


class BinaryMissing(StackError):
    pass


class FolderUnusable(StackError):
    pass


class NotRunning(StackError):
    pass


class PortTaken(StackError):
    pass


class StartFailed(StackError):
    pass


class StateTooNew(StackError):
    pass
