// SPDX-License-Identifier: Apache-2.0

// Fakeistiod serves a large made-up mesh over delta xDS, to see by
// hand how a proxy takes it:
//
//	fakeistiod -listen 127.0.0.1:15012 -root root.pem -workloads 100000 -services 5000
//	XDS_ADDRESS=https://127.0.0.1:15012 XDS_ROOT_CA=root.pem ztunnel
//
// It ends with SIGINT or SIGTERM.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("fakeistiod", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:15012", "address to listen on")
	root := flags.String("root", "", "file to write the root certificate to")
	workloads := flags.Int("workloads", 1000, "number of workloads")
	services := flags.Int("services", 50, "number of services, at least 1")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *services < 1 || *workloads < 0 {
		return fmt.Errorf("%d workloads and %d services make no mesh", *workloads, *services)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	srv, err := fakeistiod.New(fakeistiod.Options{Address: *listen})
	if err != nil {
		return err
	}
	defer srv.Stop()
	srv.World.Put(fakeistiod.Bulk(*workloads, *services)...)
	if *root != "" {
		if err := os.WriteFile(*root, []byte(srv.RootPEM()), 0o644); err != nil {
			return err
		}
	}
	fmt.Println("serving", srv.Address())
	<-ctx.Done()
	return nil
}
