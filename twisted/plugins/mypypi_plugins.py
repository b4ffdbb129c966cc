from twisted.application.service import ServiceMaker

server = ServiceMaker("MyPyPi server", "mypypi.daemon.server_tap", "Answers requests for packages.", "mypypi-server")
worker = ServiceMaker("MyPyPi worker", "mypypi.daemon.worker_tap", "Takes jobs from the queue.", "mypypi-worker")
everything = ServiceMaker("MyPyPi", "mypypi.daemon.all_tap", "Server, worker and a Redis of their own.", "mypypi")
