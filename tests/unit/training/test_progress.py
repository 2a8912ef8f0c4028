"""The lines that a training says: one per validation, with the loss where that tells something."""

from types import SimpleNamespace

from utils.training.run import Progress, outcome


def said(*rows):
    lines = []
    progress = Progress(SimpleNamespace(log=lines.append))
    for row in rows:
        state = SimpleNamespace(global_step=row["step"], max_steps=8)
        progress.on_log(None, state, None, logs=row)
    return lines


def validation(step):
    return {"step": step, "val_reward": 0.25, "val_accuracy": 0.5}


def test_a_validation_says_the_mean_loss_since_the_last_one():
    losses = [{"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 0.5))]
    assert said(validation(0), *losses[:2], validation(2), losses[2], validation(3), validation(3)) == [
        "step 0/8: val reward 0.250, val accuracy 50.0 %",
        "step 2/8: loss 2, val reward 0.250, val accuracy 50.0 %",
        "step 3/8: loss 0.5, val reward 0.250, val accuracy 50.0 %",
        "step 3/8: val reward 0.250, val accuracy 50.0 %",
    ]


def test_a_surrogate_loss_is_not_said():
    [line] = said({"step": 1, "loss": 0.01, "reward": 0.3}, validation(1))
    assert "loss" not in line


def test_without_validations_the_loss_is_said_at_the_end():
    lines = []
    state = SimpleNamespace(global_step=8, max_steps=8)
    for rows in ([{"step": 8, "loss": 2.0}], [validation(7), {"step": 8, "loss": 2.0}]):
        progress = Progress(SimpleNamespace(log=lines.append))
        for row in rows:
            progress.on_log(None, state, None, logs=row)
        progress.on_train_end(None, state, None)
    assert [line for line in lines if "val" not in line] == ["step 8/8: loss 2, the mean of all steps"]


def test_the_best_checkpoint_is_the_last_where_nothing_was_validated():
    assert outcome([{"step": 1, "loss": 2.0}], last_step=8) == {"best_step": 8}
    rows = [validation(0), validation(4) | {"val_reward": 0.5}, validation(8)]
    assert outcome(rows, last_step=8) == {
        "best_step": 4,
        "best_val_reward": 0.5,
        "final_val_reward": 0.25,
        "final_val_accuracy": 0.5,
    }


def test_a_bar_counts_the_steps_from_where_training_goes_on():
    bar = SimpleNamespace(n=0, closed=False)

    def progress(iterable, total, description, initial):
        bar.total, bar.n = total, initial
        bar.update = lambda steps: setattr(bar, "n", bar.n + steps)
        bar.close = lambda: setattr(bar, "closed", True)
        return bar

    callback = Progress(SimpleNamespace(log=print, progress=progress))
    callback.close()  # before training began there is none
    callback.on_train_begin(None, SimpleNamespace(global_step=4, max_steps=16), None)
    assert (bar.n, bar.total) == (4, 16)
    for step in (5, 6, 8):
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=16), None)
        assert bar.n == step and not bar.closed
    callback.close()
    assert bar.closed
