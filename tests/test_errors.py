"""How the one exception for a user's mistake shows itself."""

from IPython.core.interactiveshell import InteractiveShell

from stemwise.errors import UserError


def test_a_notebook_shows_the_message_and_no_traceback(capsys):
    shell = InteractiveShell()
    done = shell.run_cell("from stemwise.errors import UserError\nraise UserError('songs: no such folder. Make it.')")
    assert isinstance(done.error_in_exec, UserError)
    assert capsys.readouterr().out.strip() == "UserError: songs: no such folder. Make it."
