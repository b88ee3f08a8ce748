# At most eight targets; each is one README command.
.PHONY: demo test check setup bench clean

demo:   ## the whole loop on this machine
	python3 run.py demo

test check:   ## every check and test: what CI runs
	python3 run.py test

setup:  ## make .venv
	python3 run.py setup

bench:  ## the benchmarks, in their short form
	python3 run.py headframe bench loop --quick

clean:  ## forget the environment and the runs
	rm -rf .venv runs
