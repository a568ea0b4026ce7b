// Package gen holds what `make generate` makes of proto/: Go code below callrelay/, and the OpenAPI document. Only this
// file is written by hand.
package gen

import _ "embed"

// OpenAPI describes every HTTP route of the gateway (OpenAPI 2.0, JSON).
//
//go:embed openapi/callrelay.swagger.json
var OpenAPI []byte
