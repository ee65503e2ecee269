// Command registry serves an OCI 1.1 registry with the referrers API on loopback, from memory.
package main

import (
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

const headerTimeout = 10 * time.Second

func main() {
	address := flag.String("address", "127.0.0.1:0", "where to listen; the address is printed")
	flag.Parse()
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	log.SetFlags(0)
	log.Printf("listening on %s", listener.Addr())
	server := &http.Server{
		Handler: registry.New(registry.WithReferrersSupport(true),
			registry.Logger(log.New(io.Discard, "", 0))),
		ReadHeaderTimeout: headerTimeout,
	}
	log.Fatal(server.Serve(listener))
}
