// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/tls"
	"fmt"
)

// An Alert is the description of an alert (RFC 8446, section 6).
type Alert uint8

// The alerts that this package sends or treats apart from others.
const (
	CloseNotify       Alert = 0
	UnexpectedMessage Alert = 10
	BadRecordMAC      Alert = 20
	RecordOverflow    Alert = 22
	IllegalParameter  Alert = 47
	DecodeError       Alert = 50
	InternalError     Alert = 80
	UserCanceled      Alert = 90
)

// String is the name that RFC 8446, section 6, gives to a.
func (a Alert) String() string {
	switch a {
	case CloseNotify:
		return "close_notify"
	case UnexpectedMessage:
		return "unexpected_message"
	case BadRecordMAC:
		return "bad_record_mac"
	case RecordOverflow:
		return "record_overflow"
	case 40:
		return "handshake_failure"
	case 42:
		return "bad_certificate"
	case 43:
		return "unsupported_certificate"
	case 44:
		return "certificate_revoked"
	case 45:
		return "certificate_expired"
	case 46:
		return "certificate_unknown"
	case IllegalParameter:
		return "illegal_parameter"
	case 48:
		return "unknown_ca"
	case 49:
		return "access_denied"
	case DecodeError:
		return "decode_error"
	case 51:
		return "decrypt_error"
	}
	return a.rarer()
}

// rarer has the second half of the names.
func (a Alert) rarer() string {
	switch a {
	case 70:
		return "protocol_version"
	case 71:
		return "insufficient_security"
	case InternalError:
		return "internal_error"
	case 86:
		return "inappropriate_fallback"
	case UserCanceled:
		return "user_canceled"
	case 109:
		return "missing_extension"
	case 110:
		return "unsupported_extension"
	case 112:
		return "unrecognized_name"
	case 113:
		return "bad_certificate_status_response"
	case 115:
		return "unknown_psk_identity"
	case 116:
		return "certificate_required"
	case 120:
		return "no_application_protocol"
	}
	return fmt.Sprintf("alert(%d)", uint8(a))
}

// An AlertError ends a connection: the peer said so, or it broke a rule and is
// to be told so by [Half.Alert]. Its text is what crypto/tls says of the same
// alert ("remote error: tls: bad certificate"), so that errors read alike
// whoever owned the records; and like the errors of crypto/tls it is, for
// errors.As, a [tls.AlertError].
type AlertError struct {
	Alert  Alert
	Remote bool   // the peer sent it; else it is what we send
	Reason string // what the peer did; empty if Remote
}

func (e *AlertError) Error() string {
	if e.Remote {
		return "remote error: " + e.Unwrap().Error()
	}
	return fmt.Sprintf("local error: %v (%s)", e.Unwrap(), e.Reason)
}

// Unwrap is the alert as crypto/tls knows it.
func (e *AlertError) Unwrap() error { return tls.AlertError(e.Alert) }

// breach is a rule that the peer broke, or a limit that it passed.
func breach(a Alert, format string, args ...any) error {
	return &AlertError{Alert: a, Reason: fmt.Sprintf(format, args...)}
}
