from twisted.application.service import ServiceMaker

server = ServiceMaker("MyPyPi server", "mypypi.daemon.server_tap", "Serves packages to clients.", "mypypi-server")
worker = ServiceMaker("MyPyPi worker", "mypypi.daemon.worker_tap", "Runs the jobs from the queue.", "mypypi-worker")
everything = ServiceMaker("MyPyPi", "mypypi.daemon.all_tap", "Server, worker and Redis in one daemon.", "mypypi")
