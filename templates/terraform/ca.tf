# The private CA is a root that signs the nodes' certificates itself. Short-lived mode is meant for one level:
# "short-lived certificates must be the last CA in the certificate hierarchy"
# (https://docs.aws.amazon.com/privateca/latest/userguide/short-lived-certificates.html).

resource "aws_acmpca_certificate_authority" "this" {
  type                            = "ROOT"
  usage_mode                      = var.short_lived_ca ? "SHORT_LIVED_CERTIFICATE" : "GENERAL_PURPOSE"
  permanent_deletion_time_in_days = 30
  tags                            = merge(var.tags, { Name = var.name })

  # The CA has no revocation list. A certificate of seven days expires before most clients would read a list.
  # nats-server reads a list only if its configuration says so.
  certificate_authority_configuration {
    key_algorithm     = "EC_prime256v1"
    signing_algorithm = "SHA256WITHECDSA"

    subject {
      common_name = coalesce(var.ca_common_name, "${var.name} root")
    }
  }

  # A changed name, mode or algorithm would replace this CA by another CA, and no node could renew.
  lifecycle {
    prevent_destroy = true
  }
}

# This is the CA's self-signed certificate. It may be valid for years even in short-lived mode: "AWS Private CA does not
# perform validity checks on root CA certificates" (the same page).
resource "aws_acmpca_certificate" "root" {
  certificate_authority_arn   = aws_acmpca_certificate_authority.this.arn
  certificate_signing_request = aws_acmpca_certificate_authority.this.certificate_signing_request
  signing_algorithm           = "SHA256WITHECDSA"
  template_arn                = "arn:${data.aws_partition.current.partition}:acm-pca:::template/RootCACertificate/V1"

  validity {
    type  = "YEARS"
    value = var.ca_validity_years
  }
}

# Without its certificate, the CA has the status PENDING_CERTIFICATE and issues nothing.
resource "aws_acmpca_certificate_authority_certificate" "this" {
  certificate_authority_arn = aws_acmpca_certificate_authority.this.arn
  certificate               = aws_acmpca_certificate.root.certificate
  certificate_chain         = aws_acmpca_certificate.root.certificate_chain
}
