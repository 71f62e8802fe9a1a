// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs Istio's own discovery server and certificate
// authority (istiod) in front of an API server in memory.
//
// What istiod would read from Kubernetes it is given as YAML: files at the
// start, requests later. Nothing validates or defaults these objects, so they
// say all that istiod looks at. Tokens are no JWTs; see reviewToken. Left off
// are the controllers that deploy gateways and write their status, since the
// server-side apply of the client in memory empties what it writes: a Gateway
// comes with its status.addresses.
//
// istiod reads many settings when its packages are initialised, from the
// environment; [Environ] has those without which this makes no sense.
package controlplane

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pkg/kube"
)

// Config says where an istiod serves and what it starts with.
type Config struct {
	Objects string // a directory of YAML files
	Control string // address of the API to change objects
}

// Environ is what has to be in the environment before the process starts.
// caDir holds the authority, in the files of Istio's "cacerts" secret.
func Environ(caDir string) []string {
	return []string{
		"PILOT_ENABLE_AMBIENT=true",
		"AMBIENT_ENABLE_MULTI_NETWORK=true",
		"CA_TRUSTED_NODE_ACCOUNTS=" + SystemNamespace + "/ztunnel",
		"PILOT_ENABLE_GATEWAY_API_STATUS=false",
		"PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER=false",
		"PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER=false",
		"POD_NAMESPACE=" + SystemNamespace,
		"POD_NAME=istiod",
		"ROOT_CA_DIR=" + caDir,
	}
}

// SystemNamespace is where istiod and the proxies live.
const SystemNamespace = "istio-system"

// Ready is the line that [Run] prints when istiod serves.
const Ready = "ready"

// Run serves until SIGTERM or SIGINT: discovery and certificates with TLS on
// port 15012 of every address, objects on cfg.Control.
func Run(cfg Config) error {
	api, err := newAPI()
	if err != nil {
		return err
	}
	if err := api.load(cfg.Objects); err != nil {
		return err
	}
	server, err := bootstrap.NewServer(arguments(), func(s *bootstrap.Server) { setClient(s, api.client) })
	if err != nil {
		return fmt.Errorf("make istiod: %w", err)
	}
	stop := make(chan struct{})
	defer close(stop)
	if err := server.Start(stop); err != nil {
		return fmt.Errorf("start istiod: %w", err)
	}
	l, err := net.Listen("tcp", cfg.Control)
	if err != nil {
		return err
	}
	control := &http.Server{Handler: api.handler(), ReadHeaderTimeout: time.Second}
	failed := make(chan error, 1)
	go func() { failed <- control.Serve(l) }() // ends with the process
	fmt.Println(Ready)

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	select {
	case <-signals:
		return nil
	case err := <-failed:
		return err
	}
}

// arguments are those of "pilot-discovery discovery", as the chart has them,
// less what listens and is of no use here.
func arguments() *bootstrap.PilotArgs {
	return bootstrap.NewPilotArgs(func(a *bootstrap.PilotArgs) {
		a.RegistryOptions.Registries = []string{"Kubernetes"}
		a.RegistryOptions.KubeOptions.DomainSuffix = "cluster.local"
		a.RegistryOptions.KubeOptions.ClusterID = "Kubernetes"
		a.ServerOptions.HTTPAddr = "127.0.0.1:15081"
		a.ServerOptions.MonitoringAddr = "127.0.0.1:15014"
		a.ServerOptions.SecureGRPCAddr = ":15012"
		a.ShutdownDuration = time.Second
	})
}

// setClient gives the server a client that is not of an API server elsewhere.
// Only tests in its own package can say so; they set this field.
func setClient(s *bootstrap.Server, client kube.Client) {
	field := reflect.ValueOf(s).Elem().FieldByName("kubeClient")
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(client))
}

// load creates the objects of every file of a directory.
func (a *api) load(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err == nil {
			err = a.apply(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
