// Package conformance runs containerd's own snapshotter suite against our process.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
	// containerd's limit for what it receives from a proxy snapshotter.
	messageBytesMax = 16 << 20
)

// TestSnapshotter runs under the name of the overlay snapshotter: like it, we can't rename lower
// directories.
func TestSnapshotter(t *testing.T) {
	program := os.Getenv("SPANFS_SNAPSHOTTER")
	if program == "" {
		t.Fatal("SPANFS_SNAPSHOTTER does not name the program to test")
	}
	if os.Getuid() != 0 {
		t.Fatal("the suite mounts what it gets: it wants to be root")
	}
	start := func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return startSnapshotter(program, root)
	}
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}

func startSnapshotter(program, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "run", "snapshotter.sock")
	command := exec.Command(program, "--root", root, "--address", socket, "--log-level", "warn")
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	stop := func() error { return stopProcess(command.Process, ended) }
	if err := waitForSocket(socket, ended); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	connection, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	cleanup := func() error { return errors.Join(connection.Close(), stop()) }
	return proxy.NewSnapshotter(api.NewSnapshotsClient(connection), "overlayfs"), cleanup, nil
}

func waitForSocket(socket string, ended <-chan error) error {
	deadline := time.Now().Add(startTimeout)
	for {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		select {
		case status := <-ended:
			return fmt.Errorf("the snapshotter ended before it listened: %v", status)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nobody listens after %v: %w", startTimeout, err)
		}
	}
}

func stopProcess(process *os.Process, ended <-chan error) error {
	// An error means that it has ended; Wait tells how.
	_ = process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case <-time.After(stopTimeout):
		return errors.Join(errors.New("SIGTERM does not stop the snapshotter"), process.Kill())
	}
}
