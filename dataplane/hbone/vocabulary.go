// SPDX-License-Identifier: Apache-2.0

package hbone

import "github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"

// What tunnels say and are told is in dataplane/hbone/wire, for both engines.
type (
	Code           = wire.Code
	Settings       = wire.Settings
	Request        = wire.Request
	Response       = wire.Response
	DialError      = wire.DialError
	TLSError       = wire.TLSError
	HandshakeError = wire.HandshakeError
	StatusError    = wire.StatusError
	ResetError     = wire.ResetError
	GoAwayError    = wire.GoAwayError
	EndedError     = wire.EndedError
)

// The codes that callers meet or choose.
const (
	NoError         = wire.NoError
	ProtocolError   = wire.ProtocolError
	InternalError   = wire.InternalError
	FlowControl     = wire.FlowControl
	SettingsTimeout = wire.SettingsTimeout
	StreamClosed    = wire.StreamClosed
	FrameSize       = wire.FrameSize
	RefusedStream   = wire.RefusedStream
	Cancel          = wire.Cancel
	Compression     = wire.Compression
	ConnectError    = wire.ConnectError
	EnhanceYourCalm = wire.EnhanceYourCalm
)

// Errors by which tunnels and streams end; see their namesakes.
var (
	ErrDraining    = wire.ErrDraining
	ErrUnavailable = wire.ErrUnavailable
	ErrPingTimeout = wire.ErrPingTimeout
	ErrClosed      = wire.ErrClosed
)
