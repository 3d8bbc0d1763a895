// A server that restarts as many Go programs do: SIGUSR2 starts the binary again with the listener as descriptor 3, and
// the old process then shuts down, which closes its idle connections. It does not wait for the new one to be ready.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	address, pidfile := os.Args[1], os.Args[2]
	generation, _ := strconv.Atoi(os.Getenv("GENERATION"))
	listener, err := listen(address)
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-generation", strconv.Itoa(generation))
		w.Write([]byte("hello world eee\n"))
	})
	server := &http.Server{IdleTimeout: time.Hour}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM)
	go server.Serve(listener)
	if err := os.WriteFile(pidfile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		log.Fatal(err)
	}
	if <-signals == syscall.SIGUSR2 {
		if err := start(listener.(*net.TCPListener), generation+1); err != nil {
			log.Fatal(err)
		}
	}
	deadline, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server.Shutdown(deadline)
}

func listen(address string) (net.Listener, error) {
	if os.Getenv("INHERITED") == "" {
		return net.Listen("tcp", address)
	}
	return net.FileListener(os.NewFile(3, "listener"))
}

func start(listener *net.TCPListener, generation int) error {
	file, err := listener.File()
	if err != nil {
		return err
	}
	command := exec.Command(os.Args[0], os.Args[1:]...)
	command.Env = append(os.Environ(), "INHERITED=1", "GENERATION="+strconv.Itoa(generation))
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{file}
	return command.Start()
}
