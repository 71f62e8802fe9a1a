// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Type is the plugin's name in configurations, and the name of its program.
const Type = "zagent-cni"

// DefaultSocket is where the agent listens for the plugin.
const DefaultSocket = "/var/run/zagent/cni.sock"

// defaultTimeout is how long ADD waits for the agent and the proxy together.
// Kubelet gives a sandbox two minutes, and tries again.
const defaultTimeout = 20 * time.Second

// maxTimeout bounds what a configuration may ask for.
const maxTimeout = 100 * time.Second

// supported are the versions of the CNI specification whose form of results
// this is; they go through unread but for the addresses.
func supported() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// A Config is the plugin's part of a network configuration, as the runtime
// gives it on standard input.
type Config struct {
	// CNIVersion is the form of the result.
	CNIVersion string `json:"cniVersion"`
	// PrevResult is what the plugins before have made, passed on as it is;
	// empty where there is none.
	PrevResult json.RawMessage `json:"prevResult"`
	// Socket is the agent's; empty: DefaultSocket.
	Socket string `json:"socket"`
	// TimeoutSeconds is how long ADD may take; 0: 20.
	TimeoutSeconds int `json:"timeoutSeconds"`
	// ExcludeNamespaces are let through without the agent: what must be able
	// to start before it, and it itself.
	ExcludeNamespaces []string `json:"excludeNamespaces"`
}

func (c Config) timeout() time.Duration {
	if c.TimeoutSeconds == 0 {
		return defaultTimeout
	}
	return time.Duration(c.TimeoutSeconds) * time.Second
}

// An Error is a failure in the form of the specification (section 5, "Error").
type Error struct {
	CNIVersion string `json:"cniVersion,omitempty"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Codes of the specification.
const (
	codeVersion  = 1  // incompatible CNI version
	codeEnv      = 4  // invalid environment variables
	codeDecode   = 6  // failed to decode content
	codeConfig   = 7  // invalid network config
	codeTryAgain = 11 // try again later
)

// ParseConfig reads what the runtime gives. Its error is an *[Error].
func ParseConfig(stdin []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(stdin, &c); err != nil {
		return Config{}, &Error{Code: codeDecode, Msg: "network configuration is not what it should be", Details: err.Error()}
	}
	if string(c.PrevResult) == "null" {
		c.PrevResult = nil
	}
	bad := func(code int, msg, details string) (Config, error) {
		return Config{}, &Error{CNIVersion: c.CNIVersion, Code: code, Msg: msg, Details: details}
	}
	switch {
	case !slices.Contains(supported(), c.CNIVersion):
		return bad(codeVersion, "incompatible CNI version", fmt.Sprintf("the configuration has cniVersion %q, and supported are %s", c.CNIVersion, strings.Join(supported(), ", ")))
	case c.TimeoutSeconds < 0 || c.TimeoutSeconds > int(maxTimeout/time.Second):
		return bad(codeConfig, "timeoutSeconds is out of range", fmt.Sprintf("it is %d, and may be 0 to %d", c.TimeoutSeconds, int(maxTimeout/time.Second)))
	case c.Socket != "" && !strings.HasPrefix(c.Socket, "/"):
		return bad(codeConfig, "socket is no absolute path", c.Socket)
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	return c, nil
}

// addresses are those of a result (section 5, "ips"), without their masks.
func addresses(result json.RawMessage) ([]netip.Addr, error) {
	var r struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	var all []netip.Addr
	for _, ip := range r.IPs {
		prefix, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, fmt.Errorf("prevResult: ips: %w", err)
		}
		all = append(all, prefix.Addr().Unmap())
	}
	return all, nil
}

// A pod is who the runtime says that the container belongs to.
type pod struct{ name, namespace, uid string }

var errArgs = errors.New("it is not KEY=VALUE;KEY=VALUE")

// parseArgs reads CNI_ARGS; of a container that is no pod's there is no name.
func parseArgs(args string) (pod, error) {
	var p pod
	if args == "" {
		return p, nil
	}
	for part := range strings.SplitSeq(args, ";") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return pod{}, fmt.Errorf("CNI_ARGS %q: %w", args, errArgs)
		}
		switch key {
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	if (p.name == "") != (p.namespace == "") {
		return pod{}, fmt.Errorf("CNI_ARGS %q: it has one of K8S_POD_NAME and K8S_POD_NAMESPACE without the other", args)
	}
	return p, nil
}
